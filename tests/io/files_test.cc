// SPDX-License-Identifier: Apache-2.0
// The file system's side of io/: what is not a regular file is refused at once, a failed write
// leaves the old file and no debris, links and permissions behave as atomic_file.h says.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <csignal>
#include <cstring>
#include <numeric>

#include "io/atomic_file.h"
#include "io/npy.h"
#include "io/safetensors.h"
#include "io/text.h"
#include "io_test_util.h"

namespace attentile::io::test {
namespace {

constexpr uid_t kNobody = 65534;

std::string text_of(const Status& status) {
  return std::string(to_string(status.code())) + ": " + status.message();
}

// Both readers must say the same of this path.
void expect_unreadable(const std::string& path, const std::string& code,
                       const std::string& sentence) {
  EXPECT_EQ(text_of(read_safetensors(path).status()), code + ": " + sentence);
  EXPECT_EQ(text_of(read_npy(path).status()), code + ": " + sentence);
}

// Becomes a user without rights, as the body of a child. Already one when the tests do not run as
// root.
void drop_rights() {
  if (::geteuid() == 0 && (::setgid(kNobody) != 0 || ::setuid(kNobody) != 0)) ::_exit(9);
}

mode_t mode_of(const std::string& path) {
  struct stat info = {};
  EXPECT_EQ(::stat(path.c_str(), &info), 0);
  return info.st_mode & 07777;
}

TEST(ReadFile, WhatIsNoRegularFile) {
  const TempDir directory;
  const std::string missing = directory.file("missing");
  expect_unreadable(missing, "invalid_argument",
                    missing + ": the file cannot be opened: No such file or directory");
  const std::string below_file = directory.file("plain/x");
  write_all(directory.file("plain"), "x");
  expect_unreadable(below_file, "invalid_argument",
                    below_file + ": the file cannot be opened: Not a directory");
  expect_unreadable(directory.path(), "invalid_argument",
                    directory.path() + ": it is a directory, but a regular file is expected");
  expect_unreadable("", "invalid_argument",
                    "path: it is empty, but the name of a file is expected");
  expect_unreadable(std::string("a\0b", 3), "invalid_argument",
                    "a\\x00b: the path holds a NUL character, so it cannot name a file");
  expect_unreadable("/dev/zero", "invalid_argument",
                    "/dev/zero: it is a device, pipe or socket, but a regular file is expected");

  const std::string fifo =
      directory.file("fifo");  // nobody writes: a plain open would wait forever
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  expect_unreadable(fifo, "invalid_argument",
                    fifo + ": it is a device, pipe or socket, but a regular file is expected");

  const std::string loop = directory.file("loop");
  ASSERT_EQ(::symlink("loop", loop.c_str()), 0);
  expect_unreadable(loop, "invalid_argument",
                    loop + ": the file cannot be opened: Too many levels of symbolic links");

  const std::string odd = directory.file("new\nline");
  EXPECT_EQ(
      read_npy(odd).status().message(),
      directory.file("new\\nline") + ": the file cannot be opened: No such file or directory");
}

TEST(ReadFile, Socket) {
  const TempDir directory;
  const std::string path = directory.file("socket");
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  ASSERT_LT(path.size(), sizeof address.sun_path);
  std::strcpy(address.sun_path, path.c_str());
  const Descriptor socket(::socket(AF_UNIX, SOCK_STREAM, 0));
  ASSERT_EQ(::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  expect_unreadable(path, "invalid_argument",
                    path + ": the file cannot be opened: No such device or address");
}

TEST(ReadFile, WithoutPermission) {
  const TempDir directory;
  const std::string path = directory.file("secret");
  write_all(path, "x");
  ASSERT_EQ(::chmod(path.c_str(), 0), 0);
  const std::string said = status_in_child([&] {
    drop_rights();
    return read_safetensors(path).status();
  });
  EXPECT_EQ(said, "unavailable: " + path + ": the file cannot be opened: Permission denied");
}

class WriteFile : public ::testing::Test {
 protected:
  WriteFile() : values_(20000) {
    std::iota(values_.begin(), values_.end(), 0);
    view_ = contiguous_view(values_.data(), DType::kInt32, {20000});
    path_ = directory_.file("out.safetensors");
  }

  Status write() const { return write_to(path_); }
  Status write_to(const std::string& path) const {
    return write_safetensors(path, std::map<std::string, TensorView>{{"out", view_}});
  }

  TempDir directory_;
  std::vector<int32_t> values_;
  TensorView view_;
  std::string path_;
};

// RLIMIT_FSIZE stands for a full disk: the write fails half way.
TEST_F(WriteFile, FullDiskLeavesTheOldFile) {
  write_all(path_, "old contents");
  for (const rlim_t limit : {0, 1, 100, 4096, 80000}) {
    for (const bool strided : {false, true}) {
      view_.stride[0] = strided ? 0 : 1;
      const std::string said = status_in_child([&] {
        ::signal(SIGXFSZ, SIG_IGN);
        const rlimit limits = {limit, limit};
        if (::setrlimit(RLIMIT_FSIZE, &limits) != 0) ::_exit(9);
        return write();
      });
      EXPECT_EQ(said, "unavailable: " + path_ + ": the file cannot be written: File too large");
      EXPECT_EQ(read_all(path_), "old contents");
      EXPECT_EQ(directory_.names(), std::vector<std::string>{"out.safetensors"});
    }
  }
  EXPECT_TRUE(write().ok());
}

TEST_F(WriteFile, FullDiskLeavesNothingWhereNothingWas) {
  const std::string said = status_in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limits = {5000, 5000};
    if (::setrlimit(RLIMIT_FSIZE, &limits) != 0) ::_exit(9);
    return write_npy(path_, view_);
  });
  EXPECT_EQ(said, "unavailable: " + path_ + ": the file cannot be written: File too large");
  EXPECT_TRUE(directory_.names().empty());
}

TEST_F(WriteFile, ReadOnlyDirectoryLeavesTheOldFile) {
  write_all(path_, "old contents");
  ASSERT_EQ(::chmod(path_.c_str(), 0666), 0);
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0555), 0);
  const std::string said = status_in_child([&] {
    drop_rights();
    return write();
  });
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0755), 0);
  EXPECT_EQ(said, "unavailable: " + path_ +
                      ": no file can be created in its directory: Permission denied");
  EXPECT_EQ(read_all(path_), "old contents");
}

TEST_F(WriteFile, WriteProtectedFileIsKept) {
  write_all(path_, "old contents");
  ASSERT_EQ(::chmod(path_.c_str(), 0444), 0);
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0777), 0);
  const std::string said = status_in_child([&] {
    drop_rights();
    return write();
  });
  EXPECT_EQ(said, "unavailable: " + path_ + ": the file cannot be written: Permission denied");
  EXPECT_EQ(read_all(path_), "old contents");
}

TEST_F(WriteFile, WhatCannotBeReplaced) {
  const auto said = [&](const std::string& path) { return text_of(write_to(path)); };
  const std::string is_directory =
      ": it is a directory, but the name of a regular file is expected";
  const std::string is_special =
      ": it is a device, pipe or socket, but the name of a regular file is expected";
  EXPECT_EQ(said(directory_.path()), "invalid_argument: " + directory_.path() + is_directory);
  EXPECT_EQ(said(directory_.file("new/")),
            "invalid_argument: " + directory_.file("new/") + is_directory);
  EXPECT_EQ(said("/dev/null"), "invalid_argument: /dev/null" + is_special);
  EXPECT_EQ(said(""), "invalid_argument: path: it is empty, but the name of a file is expected");
  EXPECT_EQ(said(std::string("a\0b", 3)),
            "invalid_argument: a\\x00b: the path holds a NUL character, so it cannot name a file");
  const std::string fifo = directory_.file("fifo");
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_EQ(said(fifo), "invalid_argument: " + fifo + is_special);
  const std::string nowhere = directory_.file("no/such/out");
  EXPECT_EQ(said(nowhere),
            "invalid_argument: " + nowhere +
                ": no file can be created in its directory: No such file or directory");
  const std::string below_file = directory_.file("plain/out");
  write_all(directory_.file("plain"), "x");
  EXPECT_EQ(said(below_file),
            "invalid_argument: " + below_file + ": the file cannot be written: Not a directory");
  const std::string loop = directory_.file("loop");
  ASSERT_EQ(::symlink("loop", loop.c_str()), 0);
  EXPECT_EQ(said(loop), "invalid_argument: " + loop +
                            ": the file cannot be written: Too many levels of symbolic links");
  const std::string long_name = directory_.file(std::string(300, 'x'));
  EXPECT_EQ(said(long_name),
            "invalid_argument: " + long_name + ": the file cannot be written: File name too long");
  EXPECT_EQ(directory_.names(), (std::vector<std::string>{"fifo", "loop", "plain"}));
}

TEST_F(WriteFile, LongestNameAndCurrentDirectory) {
  EXPECT_TRUE(write_to(directory_.file(std::string(255, 'x'))).ok());
  const std::string said = status_in_child([&] {
    if (::chdir(directory_.path().c_str()) != 0) ::_exit(9);
    return write_to("here");
  });
  EXPECT_EQ(said, "ok: ");
  EXPECT_TRUE(read_safetensors(directory_.file("here")).ok());
}

TEST_F(WriteFile, LinksAreFollowedAndKept) {
  ASSERT_EQ(::mkdir(directory_.file("sub").c_str(), 0755), 0);
  const std::string target = directory_.file("sub/target");
  const std::string link = directory_.file("link");
  const std::string second = directory_.file("second");
  ASSERT_EQ(::symlink("sub/target", link.c_str()), 0);
  ASSERT_EQ(::symlink(link.c_str(), second.c_str()), 0);
  ASSERT_TRUE(write_to(second).ok());  // the target did not exist
  EXPECT_TRUE(std::filesystem::is_symlink(link));
  EXPECT_TRUE(std::filesystem::is_symlink(second));
  EXPECT_FALSE(std::filesystem::is_symlink(target));
  EXPECT_TRUE(read_safetensors(target).ok());
  EXPECT_TRUE(same_file(second, target));
  write_all(target, "old");
  ASSERT_TRUE(write_to(link).ok());  // it exists
  EXPECT_TRUE(std::filesystem::is_symlink(link));
  EXPECT_TRUE(read_safetensors(second).ok());
}

TEST_F(WriteFile, HardLinkKeepsTheOldContents) {
  write_all(path_, "old contents");
  const std::string other = directory_.file("other");
  ASSERT_EQ(::link(path_.c_str(), other.c_str()), 0);
  EXPECT_TRUE(same_file(path_, other));
  ASSERT_TRUE(write().ok());
  EXPECT_EQ(read_all(other), "old contents");
  EXPECT_FALSE(same_file(path_, other));
  EXPECT_FALSE(same_file(path_, directory_.file("missing")));
}

TEST_F(WriteFile, PermissionsFollowTheUmaskAndTheOldFile) {
  const mode_t old_mask = ::umask(0);
  const std::string paths[] = {directory_.file("a"), directory_.file("b"), directory_.file("c")};
  const mode_t masks[] = {022, 077, 0};
  for (int i = 0; i < 3; ++i) {
    ::umask(masks[i]);
    EXPECT_TRUE(write_to(paths[i]).ok());
    EXPECT_EQ(mode_of(paths[i]), 0666 & ~masks[i]);
  }
  ::umask(022);
  EXPECT_TRUE(write_to(paths[1]).ok());  // was private, stays private
  EXPECT_EQ(mode_of(paths[1]), mode_t{0600});
  ::umask(old_mask);
}

// A reader always sees a whole file while another process replaces it again and again.
TEST_F(WriteFile, ReaderSeesWholeFilesOnly) {
  ASSERT_TRUE(write().ok());
  const pid_t writer = ::fork();
  if (writer == 0) {
    bool good = true;
    for (int i = 0; i < 30 && good; ++i) good = write().ok();
    ::_exit(good ? 0 : 1);
  }
  int state = 0;
  do {
    const Result<TensorMap> read = read_safetensors(path_);
    ASSERT_TRUE(read.ok()) << read.status().message();
    ASSERT_EQ(read->at("out").num_elements(), 20000);
  } while (::waitpid(writer, &state, WNOHANG) == 0);
  EXPECT_EQ(state, 0);
}

TEST_F(WriteFile, PlainText) {
  ASSERT_TRUE(write_file(path_, "text\n").ok());
  EXPECT_EQ(read_all(path_), "text\n");
  ASSERT_TRUE(write_file(path_, "").ok());
  EXPECT_EQ(read_all(path_), "");
}

TEST(Text, IsOneLineOfUtf8) {
  EXPECT_EQ(printable("a\tb\r\x7F\xE2\x82\xAC"), "a\\tb\\x0d\\x7f\xE2\x82\xAC");
  EXPECT_EQ(printable("\xED\xA0\x80\xF4\x90\x80\x80\xE2\x82"),
            "\\xed\\xa0\\x80\\xf4\\x90\\x80\\x80\\xe2\\x82");
  EXPECT_EQ(printable("ab\xE2\x82\xAC"
                      "cd",
                      4),
            "ab...");
  EXPECT_EQ(printable("abcd", 4), "abcd");
  EXPECT_EQ(text_of(out_of_memory("q", 1)),
            "out_of_memory: q: 1 byte of memory could not be allocated");
  EXPECT_EQ(text_of(without_exceptions("q", []() -> Status { throw std::bad_alloc(); })),
            "out_of_memory: q: memory ran out");
}

}  // namespace
}  // namespace attentile::io::test
