"""What talks: HTTP, jobs, files and the command line. Nothing here imports torch but `service.stages`, in a child process."""
