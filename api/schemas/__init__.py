"""What requests and answers look like: requests, jobs, files, admin."""
