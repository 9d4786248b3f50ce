/* Fails some calls on files below LACKING_ROOT, as file systems without them do. LACKING lists them with their errno:
   flock=38 fsync_folder=22 symlink=1 mmap=19. For LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int lacks(const char *call) {
  const char *list = getenv("LACKING"), *found = list ? strstr(list, call) : NULL;
  return found ? atoi(found + strlen(call) + 1) : 0;
}

static int below(const char *path) {
  const char *root = getenv("LACKING_ROOT");
  return root && strncmp(path, root, strlen(root)) == 0;
}

static int below_fd(int fd) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return below(path);
}

int flock(int fd, int operation) {
  int error = lacks("flock");
  if (error && below_fd(fd)) return errno = error, -1;
  return ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(fd, operation);
}

int fsync(int fd) {
  struct stat what;
  int error = lacks("fsync_folder");
  if (error && fstat(fd, &what) == 0 && S_ISDIR(what.st_mode) && below_fd(fd)) return errno = error, -1;
  return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}

int symlink(const char *target, const char *path) {
  char whole[PATH_MAX];
  int error = lacks("symlink");
  if (path[0] != '/' && getcwd(whole, sizeof whole - strlen(path) - 2)) strcat(strcat(whole, "/"), path);
  else snprintf(whole, sizeof whole, "%s", path);
  if (error && below(whole)) return errno = error, -1;
  return ((int (*)(const char *, const char *))dlsym(RTLD_NEXT, "symlink"))(target, path);
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
  int error = fd >= 0 ? lacks("mmap") : 0;
  if (error && below_fd(fd)) return errno = error, MAP_FAILED;
  return ((void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, "mmap"))(address, length, protection, flags, fd, offset);
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
  return mmap(address, length, protection, flags, fd, offset);
}
