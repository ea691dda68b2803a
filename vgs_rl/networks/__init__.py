"""Networks: the value V(x, t), the control u(x, t), and how a policy reads one off the other."""
