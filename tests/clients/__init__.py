"""Other people's clients, each as a program that uses its connections, idles, uses them again."""
