"""A version timeline of a recording: `picture` lays events out, `drawing_html` draws them."""
