from pegboard.cli import main

main()
