"""What touches the machine: instances, storage, images."""
