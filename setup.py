"""Builds libfastloss, then the Cython engine on top of it. What needs no code is in pyproject.toml.

FASTLOSS_NO_EXTENSION=1 leaves both out: a pure-Python package, whose engine is Numba.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

HEADER = Path("include/fastloss.h")
CSRC = Path("fastloss/csrc")
VERSION = re.findall(r'^#define FL_VERSION "(.+)"', HEADER.read_text(), re.M)[0]
MAJOR = VERSION.split(".")[0]
MACOS = sys.platform == "darwin"

# They stand behind the flags that Python itself was built with, and win over them. -fno-lto: the archive is for every
# linker; -fno-wrapv: loops of known length are unrolled. The same flags stand in CMakeLists.txt.
C_FLAGS = ["-std=c11", "-O3", "-g0", "-fno-lto", "-fno-wrapv", "-fPIC", "-fvisibility=hidden"]
C_FLAGS += ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]

HOW_TO_INSTALL = """\
fastloss needs a C compiler (GCC or Clang) and Python's C headers to build, and {command!r} {problem}.
    Debian, Ubuntu    apt install gcc python3-dev
    Fedora            dnf install gcc python3-devel
    Alpine            apk add gcc musl-dev python3-dev
    macOS             xcode-select --install
FASTLOSS_NO_EXTENSION=1 in the environment installs fastloss without its compiled engine: pure Python, on Numba."""

OPENMP_PROGRAM = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"


class BuildExt(build_ext):
    """build_ext that makes the C library first and links it into the extension."""

    def build_extensions(self):
        self.check_compiler()
        (extension,) = self.extensions
        self.prepare(extension)
        extension.extra_objects = [str(self.build_library(Path(self.build_lib, "fastloss")))]
        self.force = True  # what was built by another compiler or with other flags is not up to date
        super().build_extensions()
        if not self.inplace:
            self.copy_extensions_to_source()

    def copy_extensions_to_source(self):
        """Puts what was built into the tree as well: a Python that is started there imports the package from there, and
        would find no engine in it."""
        super().copy_extensions_to_source()
        for folder in ("include", "lib"):
            shutil.copytree(Path(self.build_lib, "fastloss", folder), Path("fastloss", folder), dirs_exist_ok=True)

    def probe(self, program, flags=(), libraries=()):
        """Whether the compiler makes this program."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(program)
            command = [*self.compiler.compiler_so, *flags, str(source), "-o", str(Path(folder, "probe")), *libraries]
            try:
                return subprocess.run(command, capture_output=True).returncode == 0
            except OSError:
                return False

    def check_compiler(self):
        if self.compiler.compiler_type != "unix":
            raise CompileError(HOW_TO_INSTALL.format(command=self.compiler.compiler_type, problem="is neither"))
        command = self.compiler.compiler_so[0]
        includes = [f"-I{sysconfig.get_path(name)}" for name in ("include", "platinclude")]
        if shutil.which(command) is None:
            problem = "was not found"
        elif not self.probe("#include <math.h>\nint main(int n, char **v) { return v && exp(n) < 0; }\n", (), ["-lm"]):
            problem = "does not compile a C program that includes <math.h>"
        elif not self.probe("#include <Python.h>\nint main(void) { return 0; }\n", includes):
            problem = "does not find <Python.h>"
        else:
            return
        raise CompileError(HOW_TO_INSTALL.format(command=command, problem=problem))

    def openmp(self):
        """The compiler's and the linker's flags for OpenMP; two empty lists where there is none."""
        candidates = [(["-fopenmp"], ["-fopenmp"])]
        if MACOS:  # Apple's clang has no -fopenmp of its own, but takes Homebrew's runtime
            candidates += [(["-Xpreprocessor", "-fopenmp"], ["-lomp"])]
            for prefix in map(Path, ("/opt/homebrew/opt/libomp", "/usr/local/opt/libomp")):
                compiling = ["-Xpreprocessor", "-fopenmp", f"-I{prefix}/include"]
                candidates += [(compiling, [f"-L{prefix}/lib", f"-Wl,-rpath,{prefix}/lib", "-lomp"])]
        for compiling, linking in candidates:
            if self.probe(OPENMP_PROGRAM, compiling, linking):
                return compiling, linking
        hint = "brew install libomp" if MACOS else "GCC, or for Clang libomp-dev"
        print(f"fastloss: no OpenMP here, the engine will run on one thread (for threads: {hint})", file=sys.stderr)
        return [], []

    def build_library(self, package):
        """Makes package/lib and package/include; returns the static library's path."""
        lib = package / "lib"
        for folder in (lib / "pkgconfig", lib / "cmake" / "fastloss", package / "include"):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(HEADER, package / "include" / HEADER.name)

        def compile_one(source):
            includes = ["include", str(CSRC)]
            return self.compiler.compile([str(source)], self.build_temp, None, includes, extra_postargs=C_FLAGS)[0]

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, sorted(CSRC.glob("*.c"))))

        archive = lib / "libfastloss.a"
        archive.unlink(missing_ok=True)  # ar would keep members that are gone
        self.compiler.create_static_lib(objects, "fastloss", str(lib))

        if MACOS:
            file, soname = "libfastloss.dylib", f"libfastloss.{MAJOR}.dylib"
            linking, run_time_name = ["-dynamiclib", "-install_name", f"@rpath/{soname}"], f"@rpath/{soname}"
        else:
            file, soname = "libfastloss.so", f"libfastloss.so.{MAJOR}"
            linking, run_time_name = ["-shared", f"-Wl,-soname,{soname}"], soname
        linking += shlex.split(os.environ.get("LDFLAGS", ""))
        self.spawn([*self.compiler.compiler_so, *linking, *objects, "-lm", "-o", str(lib / soname)])
        shutil.copyfile(lib / soname, lib / file)  # a copy, because a wheel holds no symbolic links

        values = {
            "FASTLOSS_VERSION": VERSION,
            "FASTLOSS_LIB_TO_INCLUDE": "../include",
            "FASTLOSS_RPATH": "-Wl,-rpath,${libdir} ",  # no system folder, so programs must be told
            "FASTLOSS_SHARED_FILE": file,
            "FASTLOSS_SONAME": run_time_name,
        }
        for target in ("pkgconfig/fastloss.pc", "cmake/fastloss/fastlossConfig.cmake"):
            self.fill(lib / target, values)
        self.fill(lib / "cmake/fastloss/fastlossConfigVersion.cmake", values)
        return archive

    @staticmethod
    def fill(target, values):
        """Writes target from its template in cmake/, as CMake's configure_file(... @ONLY) does."""
        template = Path("cmake", f"{target.name}.in").read_text()
        target.write_text(re.sub(r"@(\w+)@", lambda match: values[match[1]], template))

    def prepare(self, extension):
        """Turns the extension's Cython into C, and sets how that is compiled and linked."""
        import numpy
        from Cython.Build import cythonize

        compiling, linking = self.openmp()
        if not MACOS:  # the extension keeps its copy of the library to itself
            linking = [*linking, "-Wl,--exclude-libs,ALL"]
        extension.include_dirs = ["include", str(CSRC), "fastloss/engines", numpy.get_include()]
        extension.define_macros = [
            (f"NPY_{name}", "NPY_2_0_API_VERSION") for name in ("TARGET_VERSION", "NO_DEPRECATED_API")
        ]
        extension.extra_compile_args = ["-O3", "-g0", *compiling]
        extension.extra_link_args = linking
        extension.sources = cythonize([extension], build_dir=self.build_temp, language_level=3)[0].sources


NO_EXTENSION = os.environ.get("FASTLOSS_NO_EXTENSION", "0") not in ("", "0")
NUMBA = ["numba>=0.60", "sympy>=1.12"]

setup(
    version=VERSION,
    ext_modules=[] if NO_EXTENSION else [Extension("fastloss.engines._cython", ["fastloss/engines/_cython.pyx"])],
    cmdclass={"build_ext": BuildExt},
    install_requires=["numpy>=2", "tqdm", *(NUMBA if NO_EXTENSION else [])],
    extras_require={
        "numba": NUMBA,
        "torch": ["torch>=2.13", "ml_dtypes"],
        "test": ["pytest>=8", "mpmath", "ml_dtypes", "threadpoolctl", *NUMBA],
        "demo": ["matplotlib"],
        "bench": ["asv", "selenium", "ml_dtypes", "scikit-learn", "torch", "jax", "optax", "matplotlib", *NUMBA],
    },
)
