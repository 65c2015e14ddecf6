"""What any long job needs: files, checksums, clock, progress, signals, processes, tracking. Imports no other room."""
