"""One instance of analytics: `python -m services.analytics`."""

from services.analytics.app import app
from services.kit import run

if __name__ == "__main__":
    run(app)
