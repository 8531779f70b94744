"""From a corpus and producers to finished columns: batches, worker processes, claims of several writers."""
