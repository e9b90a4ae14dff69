"""What the commands and the chapters measure: a function each, a JSON record each."""
