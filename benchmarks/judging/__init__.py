"""How many judgments a second the product takes from people at their desks, and how near that is to the database."""
