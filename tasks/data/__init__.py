"""Reading data: official files, images, batches."""
