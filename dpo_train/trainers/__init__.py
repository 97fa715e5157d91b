"""One trial's training behind one interface, `session.Session`: by TRL, packed with others, or
simulated."""
