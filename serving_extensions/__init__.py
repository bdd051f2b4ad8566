"""Further rooms of serving.py, each loaded when it is used."""
