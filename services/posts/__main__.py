"""One instance of posts: `python -m services.posts`."""

from services.kit import run
from services.posts.app import app

if __name__ == "__main__":
    run(app)
