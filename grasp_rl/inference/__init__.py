"""What is done with a policy's answers beyond one prompt an instance: refinement, routes, votes, scale."""
