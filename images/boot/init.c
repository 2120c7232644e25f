/* The whole root of `ssivmm bench boot`: PID 1 says that it runs, waits until the serial line has it, and resets. */
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <termios.h>
#include <unistd.h>

int main(void)
{
	static const char marker[] = MARKER "\n";

	if (write(1, marker, strlen(marker)) < 0)
		return 1;
	/* A reset does not wait for what the terminal still holds. */
	tcdrain(1);
	reboot(RB_AUTOBOOT);
	/* A dead PID 1 panics the kernel, and `panic=-1` resets it. */
	perror("reboot");
	return 1;
}
