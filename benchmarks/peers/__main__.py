"""`python -m benchmarks.peers`: runs rows."""

from benchmarks.peers.run import main

main()
