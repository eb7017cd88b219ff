"""What every backend must do, said once and tried on each."""
