"""python -m codeartsfs"""

from codeartsfs.cli import main

main(prog_name="codeartsfs")
