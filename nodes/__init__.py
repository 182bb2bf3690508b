"""What a machine is. Pure: nothing here opens anything or knows the time."""
