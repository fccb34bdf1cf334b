"""users: accounts and profiles. See `app.py` for the HTTP side, `domain.py` for the rules."""
