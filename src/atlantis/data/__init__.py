"""Reading training and test data: files in, frozen examples out."""
