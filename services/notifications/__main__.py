"""One instance of notifications: `python -m services.notifications`."""

from services.kit import run
from services.notifications.app import app

if __name__ == "__main__":
    run(app)
