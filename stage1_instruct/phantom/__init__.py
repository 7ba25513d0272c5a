"""An abdomen to try everything on: its anatomy, written as real files, read as any data set."""
