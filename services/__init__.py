"""The services, the chassis under them, and the command line beside them."""
