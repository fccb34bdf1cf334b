"""auth: credentials, tokens, API keys and browser sessions. See `app.py` for the HTTP side, `domain.py` for the rules."""
