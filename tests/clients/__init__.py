"""Other people's clients, each as a program that uses its connections, idles, and uses them again."""
