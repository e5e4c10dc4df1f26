"""What people read: tables of graphs, estimates and machines."""
