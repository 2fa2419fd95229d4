"""What any program of several processes needs: them, the screen, and files that appear whole."""
