"""Make finished columns from a corpus and producers: batches, worker processes, several writers."""
