"""Trains one trial behind the interface `session.Session`: with TRL, packed, or simulated."""
