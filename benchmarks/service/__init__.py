"""The service against what people would use instead, in one run on loopback.

``python -m benchmarks.service [--scale S] [--only NAME ...] [--nginx PROGRAM] [--json FILE]``

One server process (``python -m luma_server``) is measured from outside. ``--scale 0.1`` makes
everything a tenth as large. Rows:

- ``pull``: one HTTP client fetches a checkpoint's files into a folder, from nginx and from the
  server; then `luma_client.Client.download`, which also checks every hash and syncs files, against
  nginx followed by ``sha256sum``. Left out where there is no ``nginx``.
- ``push``: `luma_client.Client.upload` against ``cp`` followed by ``sha256sum``, of which neither
  syncs; and against the two with a ``sync`` of the copy between, as the server does.
- ``memory``: anonymous memory of the server while some clients push and as many pull, over idle.
- ``stats``: statistics that the server has computed before, by clients that ask without a pause,
  whole and with the ``ETag`` they have.
- ``listing``: all pages of 100 out of 10,000 checkpoints, one after another: of a server that has
  just started (cold) and once more (warm); of a folder, and of a bucket in SeaweedFS where ``weed``
  is installed. A bucket that no server has listed before is a row of its own: all manifests are
  read once, and what they told is kept there for the servers that follow.
- ``first``: statistics of a LUMA checkpoint that nobody asked for before.

Files are in the page cache when they are read, for every contender alike.
"""
