"""One instance of users: `python -m services.users`."""

from services.kit import run
from services.users.app import app

if __name__ == "__main__":
    run(app)
