"""`make test-cluster`: pods of the rendered manifests, as namespaces of this machine with addresses of their own."""
