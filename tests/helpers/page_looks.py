"""Finds text on a page that can't be read, that is cut off, or that overlaps other text.

Each is a JavaScript function for `page.evaluate`.
"""

TEXTS = """() => {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const texts = [];
    while (walker.nextNode()) {
        const parent = walker.currentNode.parentElement;
        const isShown = parent.checkVisibility({visibilityProperty: true});
        const isSeen = isShown && !parent.closest("script, option, .unseen, noscript");
        if (isSeen && walker.currentNode.data.trim()) texts.push([walker.currentNode, parent]);
    }
    return texts;
}"""
LOW_CONTRAST = (
    "() => { const texts = ("
    + TEXTS
    + """)();
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => {
        const [r, g, b] = numbers(colour).map((c) => c / 255)
            .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (node) => {
        const colour = getComputedStyle(node).backgroundColor;
        return numbers(colour)[3] === 0 ? ground(node.parentElement) : colour;
    };
    const ink = (node, pseudo) => {
        const style = getComputedStyle(node, pseudo);
        return node instanceof SVGElement ? style.fill : style.color;
    };
    const contrast = (node, pseudo) => {
        const [a, b] = [light(ink(node, pseudo)), light(ground(node))];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    };
    const found = texts.map(([text, node]) => [text.data, contrast(node)]);
    for (const box of document.querySelectorAll("input, textarea, select")) {
        found.push([box.id || box.name, contrast(box)]);
        if (box.placeholder) found.push([box.placeholder, contrast(box, "::placeholder")]);
    }
    return [found.length, found.filter(([, ratio]) => !(ratio >= 4.5))];
}"""
)
"""Returns the number of texts, and those with less contrast than WCAG's 4.5."""
CUT = (
    "() => { const texts = ("
    + TEXTS
    + """)();
    const isOutside = ([text, node]) => {
        // These scroll by themselves.
        if (node.closest("pre, .table, .wide, .trials")) return false;
        const range = document.createRange();
        range.selectNodeContents(text);
        const boxes = [...range.getClientRects()];
        const isLabel = node.closest("button") && !node.closest("#examples");
        return boxes.some((box) => box.left < 0 || box.right > innerWidth)
            || (isLabel && boxes.length > 1);
    };
    const root = document.documentElement;
    const cut = texts.filter(isOutside).map(([text]) => text.data);
    return [root.scrollWidth - root.clientWidth, cut];
}"""
)
"""Returns how many pixels the page is wider than its window, and the texts that reach out."""
IN_FIGURES = """() => {
    const wrong = [];
    for (const figure of document.querySelectorAll(".figure")) {
        const whole = figure.getBoundingClientRect();
        const boxes = [...figure.querySelectorAll("svg text")]
            .filter((text) => text.textContent.trim() && text.checkVisibility())
            .map((text) => [text.textContent, text.getBoundingClientRect()]);
        boxes.forEach(([text, box], place) => {
            const isIn = box.left >= whole.left - 1 && box.right <= whole.right + 1
                && box.top >= whole.top - 1 && box.bottom <= whole.bottom + 1;
            if (!isIn) wrong.push(`${figure.id}: ${text} is cut`);
            for (const [other, that] of boxes.slice(place + 1)) {
                const across = Math.min(box.right, that.right) - Math.max(box.left, that.left);
                const down = Math.min(box.bottom, that.bottom) - Math.max(box.top, that.top);
                if (across > 2 && down > 4) wrong.push(`${figure.id}: ${text} lies on ${other}`);
            }
        });
    }
    return wrong;
}"""
"""Returns the texts of Plotly's figures that are cut off or overlap."""
