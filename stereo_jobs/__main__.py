"""`python -m stereo_jobs` is `stereo-jobs`."""

from stereo_jobs.cli import main

if __name__ == "__main__":
    main()
