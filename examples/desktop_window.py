"""A window whose work goes on in the background: `python examples/desktop_window.py`.

Jobs run in threads of this process and tell their progress, and each may be cancelled. Close the
window while some run, and start the program again: they go on. The queue is films.db.
"""

import time
import tkinter as tk
from tkinter import ttk

from litejobs import Context, Job, LiteJobs

FRAMES = 200
jobs = LiteJobs("films.db", durability="fast")


@jobs.define(max_attempts=3)
def convert(context: Context, film: str) -> str:
    done = int(context.job.meta.get("done", 0))  # From before the window was closed.
    for frame in range(done, FRAMES):
        context.checkpoint()  # Ends the job here when it was cancelled, or the window closes.
        time.sleep(0.02)
        context.progress(frame + 1, FRAMES, film)
        context.meta("done", frame + 1)
    return f"{film} has {FRAMES} frames"


class Window:
    """Shows the latest jobs, and reads them again five times a second."""

    def __init__(self, root: tk.Tk) -> None:
        self.root = root
        self.rows: dict[int, tuple[ttk.Progressbar, tk.StringVar, ttk.Button]] = {}
        root.title("Films")
        ttk.Button(root, text="Convert a film", command=self.add).pack(fill="x", padx=8, pady=8)
        self.list = ttk.Frame(root)
        self.list.pack(fill="both", expand=True, padx=8, pady=8)
        self.pool = jobs.start(threads=2, grace=2)
        root.protocol("WM_DELETE_WINDOW", self.close)
        self.refresh()

    def add(self) -> None:
        convert.enqueue(f"film {jobs.count() + 1}")

    def close(self) -> None:
        self.pool.stop()  # Jobs that run are given back, and start again next time.
        jobs.close()
        self.root.destroy()

    def refresh(self) -> None:
        for job in reversed(jobs.find(limit=8)):
            self.show(job)
        self.root.after(200, self.refresh)

    def show(self, job: Job[str]) -> None:
        if job.id not in self.rows:
            self.rows[job.id] = self.new_row(job)
        bar, text, button = self.rows[job.id]
        bar["value"] = FRAMES if job.state == "completed" else job.meta.get("done", 0)
        text.set(f"{job.payload['film']}: {job.state}")
        if job.finished:
            button["state"] = "disabled"

    def new_row(self, job: Job[str]) -> tuple[ttk.Progressbar, tk.StringVar, ttk.Button]:
        row, text = ttk.Frame(self.list), tk.StringVar()
        row.pack(fill="x", pady=2)
        ttk.Label(row, textvariable=text, width=24).pack(side="left")
        bar = ttk.Progressbar(row, maximum=FRAMES, length=240)
        bar.pack(side="left", padx=8)
        button = ttk.Button(row, text="Cancel", command=lambda: jobs.cancel(job.id))
        button.pack(side="left")
        return bar, text, button


def main() -> None:
    root = tk.Tk()
    Window(root)
    root.mainloop()


if __name__ == "__main__":
    main()
