"""Core ML for iPhone, iPad and Mac: ML Programs, checked by executing them here."""
