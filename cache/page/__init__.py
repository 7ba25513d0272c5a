"""Reports as one HTML file: what every page of this project is made of, whatever it reports."""
