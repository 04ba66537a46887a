"""``python -m server``: patch gevent before anything else is imported, then start."""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402  (everything below must see the patched standard library)

from server.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
