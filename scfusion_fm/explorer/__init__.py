"""
One page to look at cells with in a browser: `cells` collects what is shown, `pack` makes it small, `page` writes it.

The page is `page.html` with `picture.js`, which draws points, and `page.js`, which says what they are; it loads nothing
from anywhere.
"""
