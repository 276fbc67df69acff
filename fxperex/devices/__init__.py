"""Device profiles: measured rates of the kernels that strategies are made of, kept per device and
torch version.
"""

from fxperex.devices.calibrate import calibrate
from fxperex.devices.heap import keep_pages, reserve
from fxperex.devices.profile import Profile
from fxperex.devices.profile_files import cache_folder, device_name, profile, target

__all__ = [
    "Profile", "cache_folder", "calibrate", "device_name", "keep_pages", "profile", "reserve",
    "target"
]
