"""One instance of products: `python -m services.products`."""

from services.kit import run
from services.products.app import app

if __name__ == "__main__":
    run(app)
