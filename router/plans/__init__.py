"""Plans: what looking at answers is worth, and the dial that is proven at the prices in force."""
