"""What people type beside `run`, `resume` and `push`: doctor, replay, stop, clone, list, clean."""
