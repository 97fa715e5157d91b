"""The commands other than `run`, `resume` and `push`: doctor, replay, stop, clone, list, clean."""
