"""How good the method is: pairs with truth, measured and put into tables."""
