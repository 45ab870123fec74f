"""How good a pair is: against a true right view, and without one."""
