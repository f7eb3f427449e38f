"""What ``recipes.py`` needs to read the variables of distill.sh and to run commands."""
