"""What tests share: model zoos, jobs, stores with faults, and stand-ins for services on loopback."""
